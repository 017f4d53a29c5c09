"""Networks trained by one recipe on one's own data, exported, verified and measured side by side."""
