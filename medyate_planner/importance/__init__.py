"""How much each layer and channel matters on the user's data."""
