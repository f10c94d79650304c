<?php
/**
 * Sends a message to the clients of the producer that listens on a socket file, or to the
 * members of a group ($group null: to all). The protocol is "Publishing" in
 * docs/reference/wire.md.
 *
 * Returns the number of clients reached; throws RuntimeException if no producer answers.
 */
function apachews_publish(string $path, string $message, ?string $group = null): int
{
    $frame = function (int $opcode, string $payload): string {
        $length = strlen($payload);
        $header = $length < 126 ? pack('CC', 0x80 | $opcode, $length)
            : ($length < 65536 ? pack('CCn', 0x80 | $opcode, 126, $length)
                               : pack('CCJ', 0x80 | $opcode, 127, $length));
        return $header . $payload;
    };
    $socket = @stream_socket_client("unix://$path", $errno, $error, 5);
    if ($socket === false) {
        throw new RuntimeException("$path: $error");
    }
    stream_set_timeout($socket, 5);
    $recipients = json_encode(['version' => 1, 'group' => $group], JSON_THROW_ON_ERROR);
    fwrite($socket, $frame(0x6, $recipients) . $frame(0x1, $message));   // PUBLISH, TEXT
    $header = stream_get_contents($socket, 2);       // the answer has under 126 bytes
    $answer = strlen($header) === 2 ? stream_get_contents($socket, ord($header[1])) : '';
    fclose($socket);
    $reached = json_decode($answer, true)['reached'] ?? null;
    return $reached ?? throw new RuntimeException("$path: the producer did not answer");
}
