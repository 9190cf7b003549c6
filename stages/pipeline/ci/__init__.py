"""What CI runs on a pull request: fetch, regenerate the comparison, comment on it."""
