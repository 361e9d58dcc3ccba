"""What several networks share, as functions of arrays and Linen modules."""
