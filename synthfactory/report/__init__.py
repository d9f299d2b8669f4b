"""What people look at: contact sheets, the set's card, Croissant metadata (no torch)."""
