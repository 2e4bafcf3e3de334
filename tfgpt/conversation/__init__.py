"""A chat in the terminal: the conversation, what is typed into it, and how it looks."""
