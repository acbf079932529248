"""The simulated world of `five_senses`: one latent event, seen by five senses. Needs numpy and Pillow only.

An event says who does what, how fast, on which side and where (`events.py`). Its motion (`actions.py`,
`body.py`) is computed once and seen by all; each sense adds noise of its own. What a sense cannot show by
nature it shows through a coupling that the real world has too:

| attribute | skeleton           | image            | audio               | text   | fMRI              |
| --------- | ------------------ | ---------------- | ------------------- | ------ | ----------------- |
| action    | joint angles       | pose, strobe     | impacts, calls      | verb   | code, energies    |
| colour    | wearer's build     | shirt            | wearer's voice      | word   | code, hue voxels  |
| tempo     | pace of the motion | ghosts, dust     | rhythm              | adverb | code, energies    |
| side      | limb, facing       | where they stand | near or far of mike | phrase | code, retinotopy  |
| setting   | camera's tilt      | background       | ambience            | phrase | code, energies    |

Each shirt belongs to one person (`cast.py`), each setting to one camera and one ambience.
"""
