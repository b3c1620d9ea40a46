"""The roof: verbs and command lines. May import everything; nobody imports it."""
