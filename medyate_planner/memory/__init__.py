"""What training costs, in bytes: rules per operator, costs per channel, what is kept at each moment of a step."""
