"""The Gymnasium environments: one, many at a time, and what wraps them."""
