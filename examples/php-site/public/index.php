<?php
// The whole site: GET / shows the poll, POST / with `answer` votes, GET /healthz says which version answers.
declare(strict_types=1);

require __DIR__ . '/../lib/poll.php';

$path = parse_url($_SERVER['REQUEST_URI'] ?? '/', PHP_URL_PATH);
$poll = new Poll(getenv('MC_DATA') . '/poll.sqlite3');

if ($path === '/healthz') {
    header('Content-Type: application/json');
    echo json_encode(['version' => getenv('MC_COMMIT'), 'schema' => $poll->schema(), 'votes' => $poll->total()]), "\n";
} elseif ($path !== '/') {
    http_response_code(404);
    echo "there is only /\n";
} elseif ($_SERVER['REQUEST_METHOD'] === 'POST') {
    if (!$poll->vote((string) ($_POST['answer'] ?? ''))) {
        http_response_code(400);
        echo "no such answer\n";
        return true;
    }
    header('Location: /', true, 303);
} else {
    header('Content-Type: text/html; charset=utf-8');
    echo "<!doctype html>\n<title>Poll</title>\n<h1>Tea or coffee?</h1>\n<ul>\n";
    foreach ($poll->result() as $answer => $votes) {
        echo '<li>', htmlspecialchars($answer), ': ', $votes, "</li>\n";
    }
    echo "</ul>\n";
}
return true;
