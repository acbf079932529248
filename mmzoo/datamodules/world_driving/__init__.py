"""A simulated street seen from above: what a camera and a lidar view would hold, and what is true."""
