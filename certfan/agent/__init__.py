"""Wing 2: a consumer. Installs, reloads, proves, reports."""
