"""LLM conversations in PostgreSQL, as pandas DataFrames."""
