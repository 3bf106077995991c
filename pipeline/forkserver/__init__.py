"""A fork server: a process that has imported the libraries, and forks for each stage that `icecore repro` runs.

Importing torch, scikit-learn and others takes a stage three to five CPU seconds; a fork has them from the start.

start   create the programs `python` and `icecore` in a folder for PATH, and start the server
client  the programs: send a command to the server, and exit as the command does
server  import the libraries, and fork for each command
child   set up a fork like a Python process that was started for the command, and run the command

A program runs an ordinary interpreter instead of a fork if the two might differ: while the server is still importing,
if the program's process has other variables, limits or rights than the server (`client.describe_process`), and if a
folder of the user shadows a loaded library (`child.are_hidden`).
"""
