"""What a classifier's answers are worth: metrics, their intervals, flips and what they harm. No torch."""
