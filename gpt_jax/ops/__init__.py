"""How is it computed, and differentiated? Gradients written by hand."""
