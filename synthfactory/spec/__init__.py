"""What the user asked for: the YAML spec, checked and frozen (pure: no torch, no ray)."""
