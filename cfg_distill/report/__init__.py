"""report.html, and what a person decides by: the choice of a point, two studies compared. No torch in here."""
