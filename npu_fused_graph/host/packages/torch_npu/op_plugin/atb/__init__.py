"""Where programs ask that operators of ATB are registered."""
