"""What runs came to, beside the paper: its tables, and heat maps of where a network looks."""
