<?php
// Brings the database to the newest schema, all in one transaction.
declare(strict_types=1);

require __DIR__ . '/../lib/poll.php';

echo 'schema ', (new Poll(getenv('MC_DATA') . '/poll.sqlite3'))->migrate(), "\n";
