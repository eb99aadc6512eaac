<?php
// The poll and its database. Opened for each request: the file may be exchanged by a restore between two of them.
declare(strict_types=1);

final class Poll
{
    public const ANSWERS = ['tea', 'coffee'];

    // Append only. The database remembers in `user_version` how many of these it has seen.
    public const MIGRATIONS = [
        'CREATE TABLE vote (id INTEGER PRIMARY KEY, answer TEXT NOT NULL)',
        'CREATE INDEX vote_answer ON vote (answer)',
    ];

    private PDO $db;

    public function __construct(string $file)
    {
        $this->db = new PDO('sqlite:' . $file);
        $this->db->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION);
        $this->db->exec('PRAGMA busy_timeout = 5000');
    }

    public function schema(): int
    {
        return (int) $this->db->query('PRAGMA user_version')->fetchColumn();
    }

    public function migrate(): int
    {
        $this->db->beginTransaction();
        foreach (array_slice(self::MIGRATIONS, $this->schema()) as $statement) {
            $this->db->exec($statement);
        }
        $this->db->exec('PRAGMA user_version = ' . count(self::MIGRATIONS));
        $this->db->commit();
        return $this->schema();
    }

    public function vote(string $answer): bool
    {
        if (!in_array($answer, self::ANSWERS, true)) {
            return false;
        }
        return $this->db->prepare('INSERT INTO vote (answer) VALUES (?)')->execute([$answer]);
    }

    /** @return array<string, int> */
    public function result(): array
    {
        $votes = $this->schema() === 0 ? [] : $this->db
            ->query('SELECT answer, count(*) FROM vote GROUP BY answer')->fetchAll(PDO::FETCH_KEY_PAIR);
        return array_map('intval', array_replace(array_fill_keys(self::ANSWERS, 0), $votes));
    }

    public function total(): int
    {
        return array_sum($this->result());
    }
}
