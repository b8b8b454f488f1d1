"""Complete a command before it is composed: values that fit the user's own videos and machine."""
