<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\EventType;
use apachews\Wire\Frame;
use PHPUnit\Framework\TestCase;

/**
 * The customer's program, unchanged, in a separate process.
 */
final class SeedTest extends TestCase
{
    private const LOOP = <<<'PHP'
        $ws = new apachews\Server($path);
        while ($event = $ws->dequeue()) {
            switch ($event->type()) {
            case ApacheWSAcceptEvent:
                break;
            case ApacheWSIOEvent:
                $data = $event->read();
                switch ($data) {
                    case ApacheWSError:
                    case ApacheWSConnectionClosed:
                        break;
                    default:
                        $event->write($data);
                        break;
                }
                break;
            case ApacheWSNoData:
                break;
            case ApacheWSError:
                break;
            case ApacheWSConnectionClosed:
                break;
            }
        }
        PHP;

    public function testTheProgramIsUnchanged(): void
    {
        self::assertStringContainsString(self::LOOP, (string) file_get_contents(__DIR__ . '/programs/seed.php'));
    }

    public function testEveryMessageIsEchoed(): void
    {
        $directory = new Directory();
        $process = new Program(__DIR__ . '/programs/seed.php', "$directory->path/it.ws");
        $bridge = new Bridge("$directory->path/it.ws");
        $texts = ['1002', '1001', '1000', '1006', '0', '1', '-1', '1e3', ' 1002', 'null', 'true', 'false', 'grüße'];
        foreach (EventType::cases() as $case) {
            $texts[] = $case->name;
        }
        foreach ($texts as $text) {
            $bridge->send(Frame::TEXT, $text);
            self::assertSame($text, $bridge->readText());
            $bridge->send(Frame::BINARY, $text);
            self::assertSame([Frame::FIN | Frame::BINARY, $text], $bridge->readFrame());
        }
        $bridge->send(Frame::TEXT, ''); // of type ApacheWSNoData, and not echoed
        $bridge->send(Frame::TEXT, 'on');
        self::assertSame('on', $bridge->readText());
        $bridge->sendClose(1000);
        self::assertNull($bridge->readFrame());
        (new Bridge("$directory->path/it.ws", null))->write('GET / HTTP/1.0');
        $next = new Bridge("$directory->path/it.ws");
        $next->send(Frame::TEXT, 'still there');
        self::assertSame('still there', $next->readText());
        self::assertSame('', $process->kill());
    }

    public function testNoTextEqualsAConstant(): void
    {
        $constants = [
            ApacheWSAcceptEvent,
            ApacheWSIOEvent,
            ApacheWSCloseEvent,
            ApacheWSNoData,
            ApacheWSConnectionClosed,
            ApacheWSError,
        ];
        foreach (['', '0', '1', '1001', '1002', 'Accept', 'Object', "\0"] as $text) {
            foreach ($constants as $constant) {
                switch ($text) {
                    case $constant:
                        self::fail("\"$text\" was taken for {$constant->name}");
                        // no break
                    default:
                        self::assertNotSame($constant, $text);
                }
            }
        }
        self::assertCount(6, array_unique(array_map(static fn (EventType $one): string => $one->name, $constants)));
    }
}
