"""What can be read by programs: routes, resources, and the description of them (OpenAPI)."""
