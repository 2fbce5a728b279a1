"""Running programs that nobody has read: walls of several heights, and what runs inside them."""
