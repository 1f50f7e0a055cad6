"""What this home receives: opened, recorded once, acknowledged, signed for."""
