"""A procedural indoor world: furnished rooms, ray-cast, labels of every pixel agree by construction.

`classes` names what there is, `furnish` and `person` put solids into a room, `rooms` draws a room and a
camera in it, `rays` finds what each pixel sees, `view` makes image and labels of it, `cache` keeps them.
"""
