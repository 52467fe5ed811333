"""Methods side by side, each mixture confirmed by fresh proxies."""
