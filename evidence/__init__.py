"""Records become answers: tables, figures, a summary. No torch; of the harness ``harness.record`` alone."""
