"""M3Net: boxes, map and occupancy from camera and lidar bird's-eye views. Ref: M3Net, AAAI 2025."""
