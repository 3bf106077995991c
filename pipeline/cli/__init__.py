"""The command line: `icecore …`.

main                        all commands
info, layers, cache, wrong  what they print
reproduce                   `icecore repro`: DVC with headings, times and errors
"""
