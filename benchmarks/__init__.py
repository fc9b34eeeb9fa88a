"""Speed, always as a ratio between alternatives that took turns in one run; and forecasts against observed scores."""
