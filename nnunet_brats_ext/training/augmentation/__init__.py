"""Training transforms of the papers that batchgeneratorsv2 does not have; one module per kind."""
