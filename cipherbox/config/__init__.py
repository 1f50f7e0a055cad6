"""Settings: frozen classes, the TOML files they come from, and what they name."""
