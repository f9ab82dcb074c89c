"""Pictures of systems and of what they look at; each function is handed a system and writes a file."""
