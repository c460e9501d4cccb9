"""nnU-Net's plans -> BraTSPlans: the papers' configurations, fitted to a memory budget."""
