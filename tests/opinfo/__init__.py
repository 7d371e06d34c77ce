"""torch's operator database through our backend: one graph per sample, judged against eager and float64."""
