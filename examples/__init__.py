"""The papers' experiments, each one command: `python -m examples.NAME [--data FOLDER] [--out FOLDER] [--quick]`.

monotone      the loss falls on the line from the initialisation to the end (Goodfellow 2014, Lucas 2021)
breaking      large learning rates and long ways break that (Lucas 2021)
plateau       the plateau comes from the biases (Wang 2022)
homogeneous   the simplest model of it against its formula (Wang 2022)
layers        one layer at a time (Vlaar & Frankle 2022)
connectivity  a line against a Bezier curve between two networks (Garipov 2018, Yang 2021)
surface       filter-normalised surface, and the trajectory in its plane (Li 2018)
batch_norm    every batch-norm policy on one network
many          barriers between all pairs of many networks (Frankle 2020)
"""
