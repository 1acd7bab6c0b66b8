"""A network for a station among others: what it tells them, and what it transmits."""
