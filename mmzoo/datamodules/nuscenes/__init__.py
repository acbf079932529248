"""nuScenes as info pickles list it: points and pictures as bird's-eye views; boxes, map and occupancy as
labels."""
