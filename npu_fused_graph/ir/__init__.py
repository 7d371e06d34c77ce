"""GE graphs as plain data: dataclasses, readers, verifier, printer. Imports no torch."""
