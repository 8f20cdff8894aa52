"""Who comes with a wish or a report: agents, an admin, the config. Each is written down, and the bell is rung."""
