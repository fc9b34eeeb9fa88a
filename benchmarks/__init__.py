"""Speed, always as a ratio between alternatives that took turns in one run on one machine."""
