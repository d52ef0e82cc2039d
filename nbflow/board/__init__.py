"""What pages show, as plain JSON data: runs, steps, gates, outputs, and what can be done about them.

Nothing here knows of Jupyter's widgets, of HTML or of HTTP: a page asks a
`Board` and listens to it, whatever carries the words between them. Times are
UTC seconds, sizes bytes; a run is named by its id.

| ask | with | answer |
|---|---|---|
| runs | a `listing.RunsQuery` | rows, total, counts, workflows, tags, busy |
| run | run | row, steps, more, gates, graph, attempts, published, actions, seq, at, problem |
| run | run, offset, limit | steps, total, offset, seq: what `more` says was left out |
| step | run, execution | row, source, inputs, outputs, display, attempts, error, log, decision, exhibits, facts |
| output | run, execution, name, offset, limit | an exhibit |
| gates, gate | state; run, step | rows; a gate with its exhibits |
| decide | run, step, opening, approved, feedback, selections, via, by | the gate as it is now |
| act | action, run, step, reason, params | said, and run where a new one was made |
| graph, disk | run; nothing | a picture in data; place, total, database, live, runs |
| watch | view, runs, run, gates | what is watched as above; news of it go to `Board.listen` |
| unwatch, beat | view | nothing; whether the view is known |

`watch` without a `beat` for a minute is told nothing until the next one. News are
`{"push": "runs" | "run" | "gates" | "store", ...}`: the page of runs and the list of
waiting gates whole, of a run only the steps, nodes and edges that changed (`graph`
where it was laid out anew), and `store` with the problem of a store that cannot be
looked at, None when it can again. A run of which nothing holds that was told, since
its owner was fenced off, is told whole: `{"push": "whole", "run", ...}`. Each push has the
`turn` that the answer to its `watch` had: the two may cross on their way.
"""

from nbflow.board.board import Board

__all__ = ["Board"]
