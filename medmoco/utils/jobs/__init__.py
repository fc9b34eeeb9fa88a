"""Long jobs on files: in blocks that are kept when a job is stopped, and on several machines."""
