"""What searches and comparisons leave: typed models, each with its one reader and one writer."""
