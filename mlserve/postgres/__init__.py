"""What every session with PostgreSQL keeps to, and what an error of PostgreSQL means."""
