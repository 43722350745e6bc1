"""Maps from the unknowns to the models of a propagator."""
