"""A fork server: a process that has imported the libraries, and forks for each stage that `icecore repro` runs.

Importing torch, scikit-learn and others takes a stage three to five seconds of a core; a fork has them at once.

start   puts the programs `python` and `icecore` into a folder for PATH, and starts the server
client  what the programs do: hand a command over to the server, and end as the command does
server  the process that imports and forks
child   what a fork does: it becomes what Python would be that was started for the command

A program starts the interpreter instead where a fork might differ from it in anything: until the server has imported
the libraries, where the program's process has other variables, limits or rights than the server
(`client.describe_process`), and where a folder of the user hides a library that is loaded (`child.are_hidden`).
"""
