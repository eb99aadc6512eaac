#!/bin/sh
# The tests: a poll in a database of its own.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
php -r '
require "lib/poll.php";
$poll = new Poll($argv[1] . "/poll.sqlite3");
$poll->migrate();
function must(bool $holds, string $what): void { if (!$holds) { fwrite(STDERR, "$what\n"); exit(1); } }
must($poll->migrate() === count(Poll::MIGRATIONS), "a second migration changed something");
foreach (["tea", "tea", "coffee"] as $answer) { must($poll->vote($answer), "$answer was refused"); }
must(!$poll->vote("cocoa"), "an answer that is not offered was taken");
must($poll->result() === ["tea" => 2, "coffee" => 1], "votes were counted wrongly");
echo "3 votes, counted rightly\n";
' "$dir"
