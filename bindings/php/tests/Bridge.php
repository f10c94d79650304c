<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Wire\Close;
use apachews\Wire\Frame;

/**
 * The bridge's side of one connection, for tests.
 */
final class Bridge
{
    public const DEADLINE_S = 10.0;

    /** @var resource */
    public mixed $stream;
    private string $buffer = '';

    /**
     * @param array<string, mixed>|null $open what OPEN says beside the usual; null: nothing is sent
     */
    public function __construct(string $path, ?array $open = [])
    {
        $stream = stream_socket_client("unix://$path", $code, $error, 5);
        if ($stream === false) {
            throw new \RuntimeException("$path: $error");
        }
        stream_set_read_buffer($stream, 0);
        stream_set_timeout($stream, (int) self::DEADLINE_S);
        $this->stream = $stream;
        if ($open !== null) {
            $this->write(self::open($open));
        }
    }

    /**
     * Returns an OPEN frame.
     *
     * @param array<string, mixed> $changes
     */
    public static function open(array $changes = []): string
    {
        static $count = 0;
        $document = $changes + [
            'version' => 1,
            'id' => 'id-' . ++$count,
            'resumed' => false,
            'request' => ['method' => 'GET', 'uri' => '/echo.ws', 'headers' => []],
            'remote' => ['203.0.113.7', 51514],
            'local' => ['192.0.2.1', 443],
            'scheme' => 'ws',
            'tls' => null,
            'user' => null,
            'vhost' => 'example.org',
            'subprotocols' => ['offered' => [], 'chosen' => null],
            'env' => new \stdClass(),
            'answer_required' => false,
        ];
        return Frame::encode(Frame::OPEN, json_encode($document, JSON_THROW_ON_ERROR));
    }

    public function write(string $bytes): void
    {
        self::expect(fwrite($this->stream, $bytes) === strlen($bytes), 'not all could be written');
    }

    public function send(int $opcode, string $payload = '', bool $fin = true): void
    {
        $this->write(Frame::encode($opcode, $payload, $fin));
    }

    public function sendClose(int $code, string $reason = ''): void
    {
        $this->write((new Close($code, $reason))->encode());
    }

    /**
     * Waits for a frame.
     *
     * @return array{int, string}|null first byte and payload; null at the end of file
     */
    public function readFrame(): ?array
    {
        while (true) {
            $header = Frame::decodeHeader($this->buffer, 0);
            if ($header !== null && strlen($this->buffer) >= $header[1] + $header[2]) {
                $payload = substr($this->buffer, $header[2], $header[1]);
                $this->buffer = substr($this->buffer, $header[1] + $header[2]);
                return [$header[0], $payload];
            }
            $data = (string) fread($this->stream, 1 << 20);
            if ($data === '') {
                self::expect(!stream_get_meta_data($this->stream)['timed_out'], 'no frame came in time');
                self::expect($this->buffer === '', 'the end came inside a frame');
                return null;
            }
            $this->buffer .= $data;
        }
    }

    /**
     * Waits for a text.
     */
    public function readText(): string
    {
        $frame = $this->readFrame();
        if ($frame === null || $frame[0] !== (Frame::FIN | Frame::TEXT)) {
            throw new \RuntimeException('no text came, but ' . json_encode($frame, JSON_INVALID_UTF8_SUBSTITUTE));
        }
        return $frame[1];
    }

    /**
     * Waits for a CLOSE.
     */
    public function readClose(): Close
    {
        while (($frame = $this->readFrame()) !== null && $frame[0] !== (Frame::FIN | Frame::CLOSE)) {
            continue;
        }
        return Close::decode($frame[1] ?? throw new \RuntimeException('the end of file came without a CLOSE'));
    }

    public function leave(): void
    {
        fclose($this->stream);
    }

    private static function expect(bool $isTrue, string $problem): void
    {
        if (!$isTrue) {
            throw new \RuntimeException($problem);
        }
    }
}
