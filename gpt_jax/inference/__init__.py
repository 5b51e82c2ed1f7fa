"""What does a model say, and how well?"""
