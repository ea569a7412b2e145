"""What runs inside the lab's machines, on their Python and nothing else of ours."""
